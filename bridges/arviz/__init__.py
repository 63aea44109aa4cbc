"""ArviZ: traces as its objects, their diagnosis in words, and plots."""

from .convert import summaries, to_inference_data
from .diagnose import diagnose
from .summary import summary
from .verdict import Verdict
from .words import Diagnosis

__all__ = ["Diagnosis", "Verdict", "diagnose", "summaries", "summary", "to_inference_data"]
