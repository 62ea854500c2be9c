"""All that a training needs to go on exactly: written atomically, read without pickles."""
