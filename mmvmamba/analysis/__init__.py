"""Measuring and looking at models: functions that the command lines in tools/ call. Pictures: `drawing` alone."""
