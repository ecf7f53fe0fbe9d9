"""Verifiers: functions that verl calls on every response."""
