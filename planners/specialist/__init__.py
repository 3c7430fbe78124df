"""One nnU-Net plan per dataset."""
