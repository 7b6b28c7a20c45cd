"""Why a network gives an image its class: class activation maps and split attention, in a picture.

`explanation` computes and knows no picture, `picture` draws and knows no network.
"""

from gluon_resnest.explaining.explanation import (
    BlockAttention,
    Explanation,
    StageAttention,
    attention_by_stage,
    explain,
)

__all__ = ["BlockAttention", "Explanation", "StageAttention", "attention_by_stage", "explain"]
