"""How our speech network was made: speech with exact phone timings, what each phone does to a mouth, and training.

`scripts/train_mouth.py` runs it.  Nothing here is needed to render a film.
"""
