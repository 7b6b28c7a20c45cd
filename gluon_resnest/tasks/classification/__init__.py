"""The paper's classifiers: recipe, transforms, loss and accuracy."""
