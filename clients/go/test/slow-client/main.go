// Command slow-client is the client with a training that waits SLOW_HEAD_SECONDS first, in which a test may do its worst; with
// SLOW_HEAD_FAILS it fails then.
package main

import (
	"context"
	"errors"
	"os"
	"strconv"
	"time"

	"fedstream/client/internal/cli"
	"fedstream/client/internal/head"
	"fedstream/client/internal/task"
)

const usualSeconds = 3

func main() { os.Exit(cli.Main(os.Args[1:], slowTask{})) }

type slowTask struct{ head.Task }

func (s slowTask) Open(settings map[string]string, dataPath string) (task.Training, error) {
	training, err := s.Task.Open(settings, dataPath)
	return slowTraining{training}, err
}

type slowTraining struct{ task.Training }

func (s slowTraining) FineTune(
	ctx context.Context, base map[string][]byte, plan task.Plan, report func(task.Progress),
) (task.Tuned, error) {
	report(task.Progress{Epoch: 1, Epochs: plan.Epochs})
	seconds, err := strconv.ParseFloat(os.Getenv("SLOW_HEAD_SECONDS"), 64)
	if err != nil {
		seconds = usualSeconds
	}
	select {
	case <-ctx.Done():
		return task.Tuned{}, ctx.Err()
	case <-time.After(time.Duration(seconds * float64(time.Second))):
	}
	if os.Getenv("SLOW_HEAD_FAILS") != "" {
		return task.Tuned{}, errors.New("broken")
	}
	return s.Training.FineTune(ctx, base, plan, report)
}
