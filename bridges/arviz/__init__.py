"""ArviZ: traces as its objects, their diagnosis in words, and plots."""

from .convert import summaries, to_inference_data
from .diagnose import diagnose
from .words import Diagnosis

__all__ = ["Diagnosis", "diagnose", "summaries", "to_inference_data"]
