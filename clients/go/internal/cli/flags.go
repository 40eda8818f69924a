package cli

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"fedstream/client/internal/fault"
)

// errHelped says that help was asked for, and given.
var errHelped = errors.New("help was given")

func newFlags(command, text string) *flag.FlagSet {
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // what is wrong is told once, by main
	flags.Usage = func() {
		fmt.Print(text)
		flags.SetOutput(os.Stdout)
		flags.PrintDefaults()
	}
	return flags
}

// parse reads options and gives the other words; both may come in any order.
func parse(flags *flag.FlagSet, words []string) (others []string, err error) {
	for {
		if err := flags.Parse(words); errors.Is(err, flag.ErrHelp) {
			return nil, errHelped
		} else if err != nil {
			return nil, fault.Stopf(fault.BadConfiguration,
				"%v; `fedstream-client %s --help` lists the options", err, flags.Name())
		}
		if flags.NArg() == 0 {
			return others, nil
		}
		others, words = append(others, flags.Arg(0)), flags.Args()[1:]
	}
}
