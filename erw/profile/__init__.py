"""Where a step's time goes: ranges around its parts, a trace of some steps and a page of figures from it."""
