// Command fedstream-client takes part in a federation that learns brain_mri_head.
package main

import (
	"os"

	"fedstream/client/internal/cli"
	"fedstream/client/internal/head"
)

func main() { os.Exit(cli.Main(os.Args[1:], head.Task{})) }
