"""Training of one nnU-Net per dataset, by nnunetv2 itself."""
