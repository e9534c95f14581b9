"""What finished and stopped runs say: one page about several (``erw report``), two side by side (``erw compare``)."""
