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
6 untrusted; 7 training failed several times in a row; 8 another client of the same name took over;
129 stopped by SIGHUP, as when its terminal is closed; 130 by Ctrl-C; 143 by SIGTERM.
`

var codes = map[os.Signal]int{
	syscall.SIGHUP: fault.HungUp, os.Interrupt: fault.Interrupted, syscall.SIGTERM: fault.Terminated,
}

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
	select {
	case err := <-ended:
		return err
	case number := <-notified():
		// The next one is for a person in a hurry; what was finished is on disk already. Not so a hang-up: of a terminal that
		// is closed, both the shell and the system send one.
		signal.Reset(os.Interrupt, syscall.SIGTERM)
		return leave(took, number, ended, cancel)
	}
}

// notified gives the signals by which the operator asks for the end. A hang-up that is ignored, as `nohup` has it, stays so.
func notified() <-chan os.Signal {
	signal.Ignore(syscall.SIGPIPE) // whose output is lost goes on
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(asked, syscall.SIGHUP)
	}
	return asked
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
	return fault.Stopf(codes[number], "stopped by %v; start it again to take part again", number)
}

func join(words []string) error {
	asked, err := readJoin(words, os.Stdin)
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
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
