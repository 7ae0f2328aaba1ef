"""The offline side: root, intermediates, issuing CAs."""
