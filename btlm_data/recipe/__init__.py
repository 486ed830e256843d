"""The settings of a run (`models`), and how a recipe file and the command line become them
(`load`).
"""
