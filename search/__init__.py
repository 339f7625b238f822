"""Search spaces and search methods: from a space, a latency table and images to an architecture within a budget."""
