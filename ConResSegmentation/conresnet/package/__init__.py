"""Model packages: the weights of a model with everything needed to use them, in a folder or a .zip file.

A package contains `model.json`, one `*.safetensors` file per network, `LICENSE.txt`, and where available
`metrics.json`, `MODEL_CARD.md` and `thumbnail.png`. Nothing in it is executed. docs/model-package.md describes the
format; `conresnet.package.description` is its schema. Importing this takes the standard library alone, so Slicer can
use it.
"""

from conresnet.package.description import ModelDescription, parse_description
from conresnet.package.reader import ModelPackage, read_package
from conresnet.package.store import write_package

__all__ = ["ModelDescription", "ModelPackage", "parse_description", "read_package", "write_package"]
