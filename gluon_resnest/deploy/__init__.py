"""Trained networks as files and graphs that run without this package."""

from gluon_resnest.deploy.exporting import FORMATS, Description, export, run_exported
from gluon_resnest.deploy.mxnet_graph import deployed, deployment_graph

__all__ = ["FORMATS", "Description", "deployed", "deployment_graph", "export", "run_exported"]
