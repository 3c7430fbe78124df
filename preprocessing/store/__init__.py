"""The store: preprocessed scans on disk, what training needs to know of all of them, and checks that they are whole."""
