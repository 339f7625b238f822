"""Run the official Cityscapes evaluation, cityscapesScripts 2.3.0, which needs numpy < 2.4, in an environment of its own (see test_official_live.py).

    python record.py cases OUT.json            every case of official_cases.py: what is committed as official.json
    python record.py seeds COUNT OUT.json      `random_case` of so many seeds
    python record.py folder ROOT PREDICTIONS OUT.json     gtFine/val of a Cityscapes folder against a folder of predictions

OUT.json maps a name to the sha256 of the text that the script wrote, and to its scores and priors; NaN is written bare, as there.
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import official_cases
from PIL import Image

os.environ.setdefault("CITYSCAPES_DATASET", tempfile.gettempdir())
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official  # type: ignore[import-not-found]


def evaluated(predictions: list[str], truths: list[str], out: Path, *, instances: bool) -> dict[str, Any]:
    """The official results of pairs of files, and the sha256 of the JSON that the script writes."""
    official.args.quiet, official.args.evalInstLevelScore, official.args.exportFile = True, instances, str(out)
    official.evaluateImgLists(predictions, truths, official.args)
    text = out.read_text()
    results = {name: value for name, value in json.loads(text).items() if name not in ("confMatrix", "labels")}
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "results": results}


def of_images(images: list[official_cases.Image], folder: Path) -> dict[str, Any]:
    """The official results of maps."""
    predictions, truths = list[str](), list[str]()
    for index, (truth, prediction, instances) in enumerate(images):
        name = folder / f"drawn_{index:06}_000000"
        for suffix, pixels in (("gtFine_labelIds", truth), ("pred", prediction), ("gtFine_instanceIds", instances)):
            Image.fromarray(pixels).save(f"{name}_{suffix}.png")
        truths.append(f"{name}_gtFine_labelIds.png")
        predictions.append(f"{name}_pred.png")
    return evaluated(predictions, truths, folder / "out.json", instances=True)


def of_folder(root: Path, predictions: Path, folder: Path) -> dict[str, Any]:
    """The official results of a folder of predictions, which the script finds by itself; instances where there are any."""
    truths = sorted(map(str, root.glob("gtFine/val/*/*_gtFine_labelIds.png")))
    official.args.predictionPath, official.args.predictionWalk = str(predictions), None
    found = [official.getPrediction(official.args, truth) for truth in truths]
    instances = all(os.path.exists(truth.replace("labelIds", "instanceIds")) for truth in truths)
    return evaluated(found, truths, folder / "out.json", instances=instances)


def main(words: list[str]) -> None:
    """See the top of the file."""
    kind, out = words[0], Path(words[-1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "folder":
            found = {"folder": of_folder(Path(words[1]), Path(words[2]), folder)}
        elif kind == "seeds":
            found = {str(seed): of_images(official_cases.random_case(seed), folder) for seed in range(int(words[1]))}
        else:
            found = {case: of_images(images, folder) for case, images in official_cases.cases().items()}
    lines = [f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in found.items()]
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
