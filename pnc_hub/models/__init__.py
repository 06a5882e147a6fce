"""What can be read off any timm classifier. Nothing here changes a model, and nothing knows of clones."""
