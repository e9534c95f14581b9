"""Which method gets how far with the same GPU-hours: ``python -m erw.bench.convergence STUDY``.

    study     what a study is, read from its file in bench/studies
    plan      the settings of every variant at the study's budget
    runs      trains them, several seeds each, and writes the record
    sweep     chooses a variant's settings beforehand, on seeds of its own
    figures   what a record says: means, intervals, paired differences
    targets   what it takes to get as far as another method, with bootstrap intervals
    words     tables and sentences, for the report and the README
    picture   curves and ends
    report    docs/studies/STUDY.md

A new study is a new file in bench/studies.
"""
