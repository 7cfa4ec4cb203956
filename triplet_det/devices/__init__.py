"""Devices: how a batch is split over them, what their compiler is told, and what it says of a program."""
