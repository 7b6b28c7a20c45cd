"""Trained networks as files and graphs that run without this package."""

from gluon_resnest.deploy.mxnet_graph import deployed, deployment_graph

__all__ = ["deployed", "deployment_graph"]
