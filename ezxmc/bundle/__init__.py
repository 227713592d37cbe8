"""The deliverable: a student, its label index, calibrator and labels in one folder; tagging with it."""
