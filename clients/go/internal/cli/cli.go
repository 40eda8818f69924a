// Package cli is the command: options, signals and exit codes.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"fedstream/client/internal/client"
	"fedstream/client/internal/fault"
	"fedstream/client/internal/logs"
	"fedstream/client/internal/task"
)

const help = `Usage: fedstream-client COMMAND [OPTIONS]

A client of a fedstream federation. Only weights, counts and metrics leave this machine.

  join      join a federation, once, with the token that its coordinator has sent
  run       take part in it, until it ends

fedstream-client COMMAND --help lists a command's options.

Exit codes: 0 the federation finished; 1 defect; 2 wrong option; 3 unusable data; 4 declined; 5 unreachable;
6 untrusted; 7 training failed; 8 another client of the same name took over; 130 and 143 stopped by a signal.
`

// How long a session may take to end once the operator has stopped this client.
const goodBye = 3 * time.Second

// Main runs the command of these words with a task, and gives the exit code.
func Main(words []string, learned task.Task) int {
	command := ""
	if len(words) > 0 {
		command, words = words[0], words[1:]
	}
	var err error
	switch command {
	case "run":
		err = run(words, learned)
	case "join":
		err = join(words)
	case "--version":
		fmt.Println(client.Software)
	case "-h", "--help", "help":
		fmt.Print(help)
	default:
		err = fault.Stopf(fault.BadConfiguration, "the command is join or run, not %q; --help says more", command)
	}
	return tell(err)
}

func tell(err error) int {
	if err == nil || errors.Is(err, errHelped) {
		return fault.Finished
	}
	fmt.Fprintln(os.Stderr, "fedstream-client:", err)
	var stop *fault.Stop
	if errors.As(err, &stop) {
		return stop.Code
	}
	return fault.Defect
}

func run(words []string, learned task.Task) error {
	config, err := readRun(words)
	if err != nil {
		return err
	}
	took := client.New(*config, learned, logs.New(os.Stderr, config.Name))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		said, err := took.Run(ctx)
		if err == nil {
			fmt.Println(said)
		}
		ended <- err
	}()
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, os.Interrupt, syscall.SIGTERM)
	select {
	case err := <-ended:
		return err
	case number := <-asked:
		signal.Stop(asked) // the next one is for a person in a hurry; what was finished is on disk already
		return leave(took, number, ended, cancel)
	}
}

// leave says good-bye, and waits until the server knows.
func leave(took *client.Client, number os.Signal, ended <-chan error, cancel func()) error {
	go func() {
		if !took.Leave("stopped by its operator") {
			cancel()
		}
	}()
	select {
	case <-ended:
	case <-time.After(goodBye):
	}
	cancel()
	code := fault.Interrupted
	if number == syscall.SIGTERM {
		code = fault.Terminated
	}
	return fault.Stopf(code, "stopped by %v; start it again to take part again", number)
}

func join(words []string) error {
	asked, err := readJoin(words, os.Stdin)
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	said, err := asked.folder.Join(ctx, asked.token, asked.server, asked.enrolment, logs.New(os.Stderr, asked.token.Name))
	if errors.Is(err, context.Canceled) {
		return fault.Stopf(fault.Interrupted, "stopped; try again with the same token")
	}
	if err != nil {
		return err
	}
	option := ""
	if asked.isElsewhere {
		option = " --identity " + asked.folder.Path
	}
	_, err = fmt.Printf("%s.\nIts key is in %s. Take part with: fedstream-client run%s --data FILE\n",
		said, asked.folder.Path, option)
	return err
}

// readAll reads a token from standard input, as much of it as a token may have.
func readAll(from io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(from, 64<<10))
	return string(text), err
}
