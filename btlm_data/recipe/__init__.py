"""What a run is told: the settings (`models`), and how a recipe file and the command line become them
(`load`).
"""
