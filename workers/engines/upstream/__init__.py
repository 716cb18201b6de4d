"""Engines that render with the models' own code, from a checkout that the user has.

Nothing of a checkout is in this repository.  Each module here is the seam to one of them: it checks the checkout and
the checkpoint before anything is loaded, imports what it needs under the model's own interpreter, loads once, and then
renders segment after segment with exact tails, a carry after every chunk and errors in the farm's words.
"""
