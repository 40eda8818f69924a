"""The first task: brain MRI slices, tumour or no tumour."""
