"""`meshca vault setup`: makes in Vault what an issuing CA of `bridge.yaml` needs."""
