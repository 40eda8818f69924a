"""The classifier head of the brain MRI model, trained on features that the frozen backbone gave."""
