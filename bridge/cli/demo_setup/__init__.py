"""What `meshca demo` is shown on."""
