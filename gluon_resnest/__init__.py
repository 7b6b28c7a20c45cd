"""ResNeSt: Split-Attention Networks, for MXNet 1.9.1 (Gluon).

>>> import gluon_resnest
>>> net = gluon_resnest.get_model("resnest50", pretrained=True)
"""

from gluon_resnest import runtime

runtime.prepare_mxnet()  # before MXNet is imported

from gluon_resnest.models import get_model, list_models  # noqa: E402
from gluon_resnest.planning.cost import summary  # noqa: E402
from gluon_resnest.version import __version__  # noqa: E402

runtime.leave_cores_to_the_engine()

__all__ = ["__version__", "get_model", "list_models", "summary"]
