"""What a run will do and cost, before it starts.

costs      FLOPs by phase                      memory     bytes of a GPU by kind
text       ``--dry-run`` in words              network    bytes and seconds of communication
trace      one step on tensors without data    rates      how fast a device computes, measured or from its data sheet
forecast   all of them put together            report     as text, table and picture
"""

from erw.plan.costs import Costs, images_for_budget, last_alignment, phases
from erw.plan.text import phase_words, plan_text, teacher_words

__all__ = ["Costs", "images_for_budget", "last_alignment", "phase_words", "phases", "plan_text", "teacher_words"]
