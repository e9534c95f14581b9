"""Settings chosen by a short pilot instead of guessed.

pilot     trains warm-ups of ERW at several depths        choice    reads length and depth off their alignment curves
report    the choice as text, table and figure
"""
