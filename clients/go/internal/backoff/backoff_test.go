package backoff

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"fedstream/client/internal/fault"
)

var quick = Patience{First: time.Millisecond, Longest: 2 * time.Millisecond}

func try(patience Patience) Try {
	return Try{Doing: "trying", HowFar: func() int64 { return 0 }, Patience: patience, Log: slog.New(slog.DiscardHandler)}
}

func TestTroubleIsTriedAgainAndARefusalIsNot(t *testing.T) {
	left := 3
	err := try(quick).Until(t.Context(), func(context.Context) error {
		if left--; left >= 0 {
			return fault.Troublef("cut")
		}
		return &fault.Refusal{Reason: fault.RoundClosed}
	})
	if fault.Refused(err, fault.RoundClosed) == nil || left != -1 {
		t.Errorf("ended with %v after %d", err, left)
	}
}

func TestLimitIsWaitedForAsLongAsTheServerSays(t *testing.T) {
	began, isFirst := time.Now(), true
	err := try(quick).Until(t.Context(), func(context.Context) error {
		if isFirst {
			isFirst = false
			return &fault.Refusal{Reason: fault.LimitExceeded, RetryAfter: 40 * time.Millisecond}
		}
		return nil
	})
	if err != nil || time.Since(began) < 40*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

func TestWithoutProgressItGivesUp(t *testing.T) {
	patience := quick
	patience.GiveUpAfter = 10 * time.Millisecond
	if err := try(patience).Until(t.Context(), func(context.Context) error { return fault.Troublef("cut") }); !fault.IsTrouble(err) {
		t.Error(err)
	}
}

func TestWhatIsNotWantedAnyMoreEndsAtOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	err := try(Usual).Until(ctx, func(context.Context) error { cancel(); return fault.Troublef("cut") })
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestWaitsDoubleUpToTheLongest(t *testing.T) {
	for tries, most := range map[int]time.Duration{0: 500 * time.Millisecond, 1: time.Second, 5: 16 * time.Second, 6: 30 * time.Second, 99: 30 * time.Second} {
		if wait := try(Usual).wait(fault.Troublef(""), tries); wait < most/2 || wait > most {
			t.Errorf("%v after %d tries", wait, tries)
		}
	}
}
