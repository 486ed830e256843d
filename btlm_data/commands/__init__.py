"""The commands of `btlm-data`: options, calls, printing; no logic. Heavy modules are imported when a command
runs.
"""
