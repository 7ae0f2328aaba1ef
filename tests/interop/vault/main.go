// Command vault is HashiCorp Vault with the engines and logins that need no library of a cloud.
package main

import (
	"os"

	"github.com/hashicorp/vault/command"
)

func main() {
	os.Exit(command.Run(os.Args[1:]))
}
