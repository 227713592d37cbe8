"""Feedback: the store of judgments, the annotation job, and the targets made of them."""
