"""Competitors on the same cases, with statistics."""
