package work

import (
	"errors"
	"log/slog"
	"testing"

	"fedstream/client/internal/fault"
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
