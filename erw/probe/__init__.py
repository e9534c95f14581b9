"""Looking inside: what a network's hidden states know, and how like a teacher's they are (``erw probe``)."""
