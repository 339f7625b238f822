"""What a session asks of a target before it opens anything: fields and options that it serves, and facts that must be the same here."""

from collections.abc import Mapping

from segnas.errors import IncompatibleError, InputError
from segnas.target import Target

Choices = Mapping[str, tuple[str, ...]]


def require_fields(target: Target, backend: str, choices: Choices) -> None:
    """InputError where a field of the target is not among what that backend's sessions take."""
    for name, allowed in choices.items():
        if getattr(target, name) not in allowed:
            raise InputError(f"target {name} was given {getattr(target, name)!r}; a session of {backend} takes {', '.join(allowed)}")


def chosen_options(target: Target, backend: str, choices: Choices, facts: Mapping[str, str]) -> dict[str, str]:
    """The target's options, facts left out, over the defaults (the first choice of each); InputError for an option or value that does not exist."""
    for name, value in target.options:
        if name not in choices and name not in facts:
            raise InputError(f"target option {name!r} was given; {backend} takes {', '.join(sorted({*choices, *facts}))}")
        if name in choices and value not in choices[name]:
            raise InputError(f"target option {name} was given {value!r}; allowed: {', '.join(choices[name])}")
    return defaults(choices) | {name: value for name, value in target.options if name in choices}


def defaults(choices: Choices) -> dict[str, str]:
    """The first choice of each option."""
    return {name: allowed[0] for name, allowed in choices.items()}


def require_here(target: Target, device: str, version: str, facts: Mapping[str, str]) -> None:
    """IncompatibleError, naming the fields, for a target of another device or version, or with other facts than those here."""
    here = {"device": device, "runtime_version": version, **facts}
    given = {"device": target.device, "runtime_version": target.runtime_version, **{k: v for k, v in target.options if k in facts}}
    differing = [f"{name}: the target has {value!r}, here is {here[name]!r}" for name, value in given.items() if value != here[name]]
    if differing:
        raise IncompatibleError(f"this target is not the device here ({'; '.join(differing)}); run `segnas profile` or `segnas export` on this one")
