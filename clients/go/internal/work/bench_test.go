package work

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"fedstream/client/internal/fault"
	"fedstream/client/internal/store"
	"fedstream/client/internal/task"
)

// checked gives what a bench says after each of these failures, in a row.
func checked(failures ...error) error {
	shop := &Shop{Log: slog.New(slog.DiscardHandler)}
	bench := NewBench(shop, Limits{})
	var health error
	for _, failure := range failures {
		bench.job = newJob(Offer{}, shop, bench.Terms)
		bench.job.state, bench.job.failure = Failed, failure
		health = bench.CheckHealth()
	}
	return health
}

func TestConfirmationOfMoreThanWasAgreedIsRefused(t *testing.T) {
	kept, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	shop := &Shop{Store: kept, Log: slog.New(slog.DiscardHandler)}
	for what, one := range map[string]struct {
		limits    Limits
		epoch     time.Duration
		confirmed uint32
	}{
		"more than was offered":       {Limits{}, 0, 11},
		"more than was asked for":     {Limits{MaxEpochs: 3}, 0, 4},
		"more than there is time for": {Limits{MaxTraining: time.Minute}, 30 * time.Second, 3},
		"what was declined":           {Limits{MaxTraining: time.Minute}, time.Hour, 1},
	} {
		bench := NewBench(shop, one.limits)
		bench.experience.Epoch = one.epoch
		bench.Consider(Offer{ID: "a", Epochs: 10, Remaining: time.Hour})
		bench.Confirm("a", task.Plan{Epochs: one.confirmed})
		if state, reason := bench.Job("a").State(); state != Failed || reason == "" {
			t.Errorf("%s: %v %q", what, state, reason)
		}
	}
}

func TestEachOfferOnceCountsAsAMisfitUntilADelivery(t *testing.T) {
	kept, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	bench := NewBench(&Shop{Store: kept, Log: slog.New(slog.DiscardHandler)}, Limits{MaxTraining: time.Second})
	bench.experience.Epoch = time.Hour
	isTried := func(id string) bool {
		return bench.Consider(Offer{ID: id, Epochs: 10, Remaining: time.Hour}).Counter != nil
	}
	for _, one := range []struct {
		id    string
		tried bool
	}{{"a", false}, {"a", false}, {"b", true}, {"b", true}, {"c", false}, {"d", true}} {
		if tried := isTried(one.id); tried != one.tried {
			t.Errorf("offer %s: tried %v", one.id, tried)
		}
	}
	bench.job.transfer = time.Second // it was delivered
	if isTried("e") || !isTried("f") {
		t.Error("a delivery begins anew")
	}
}

// patient trains until it is stopped, and says each 10 ms that an epoch is done.
type patient struct{ task.Training }

func (patient) FineTune(
	ctx context.Context, _ map[string][]byte, plan task.Plan, report func(task.Progress),
) (task.Tuned, error) {
	for epoch := uint32(1); ; epoch++ {
		select {
		case <-ctx.Done():
			return task.Tuned{}, ctx.Err()
		case <-time.After(10 * time.Millisecond):
			report(task.Progress{Epoch: epoch, Epochs: plan.Epochs, Fraction: float32(epoch) / float32(plan.Epochs)})
		}
	}
}

func TestTrainingEndsWithTheSitesLimitOnTimeAndTeachesHowLongAnEpochTakes(t *testing.T) {
	job := newJob(Offer{}, &Shop{Training: patient{}, Log: slog.New(slog.DiscardHandler)}, nil)
	job.mostTraining = 200 * time.Millisecond
	_, err := job.train(t.Context(), nil, task.Plan{Epochs: 1000})
	if training := (*trainingFailure)(nil); !errors.As(err, &training) || generalWords(err) != errTooLong.Error() {
		t.Errorf("ends with %v", err)
	}
	if job.epoch < 10*time.Millisecond || job.epoch > 100*time.Millisecond {
		t.Errorf("an epoch took %v", job.epoch)
	}
}

func TestWorkThatFailedEndsTheClientOnlyWhereItIsHopeless(t *testing.T) {
	broken, full := &trainingFailure{errors.New("broken")}, errors.New("no space left on device")
	for _, one := range []struct {
		failures []error
		code     int // 0 where the client goes on
	}{
		{[]error{broken, broken}, 0},
		{[]error{full, full, full}, 0},
		{[]error{broken, broken, broken}, fault.TrainingFailed},
		{[]error{broken, broken, &fault.Refusal{Reason: fault.SchemaMismatch}, broken}, 0},
		{[]error{&fault.Refusal{Reason: fault.PermissionDenied}}, fault.Untrusted},
		{[]error{&fault.Refusal{Reason: fault.Unauthenticated}}, fault.Untrusted},
	} {
		code := 0
		if stop := (*fault.Stop)(nil); errors.As(checked(one.failures...), &stop) {
			code = stop.Code
		}
		if code != one.code {
			t.Errorf("%v: ends with %d", one.failures, code)
		}
	}
}
