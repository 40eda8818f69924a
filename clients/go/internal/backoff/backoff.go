// Package backoff comes back after an error: exponential waits with jitter, begun anew after every progress.
package backoff

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"fedstream/client/internal/fault"
)

// Patience says how to wait: at first, at most, and how long to go on without any progress; 0 for ever.
type Patience struct {
	First       time.Duration
	Longest     time.Duration
	GiveUpAfter time.Duration
}

// Usual is as the protocol asks for.
var Usual = Patience{First: 500 * time.Millisecond, Longest: 30 * time.Second}

// A Try is something to be done through every error of the network and every bound of the server.
type Try struct {
	Doing    string       // for the log, such as `sending the update`
	HowFar   func() int64 // grows with every progress
	Patience Patience
	Log      *slog.Logger
}

// Until calls once until it returns something else than Trouble or LIMIT_EXCEEDED; a call goes on where the last one got
// to. It returns ctx's error when ctx has ended, and the Trouble when patience has.
func (t Try) Until(ctx context.Context, once func(context.Context) error) error {
	mark, tries, since := t.HowFar(), 0, time.Now()
	for {
		err := once(ctx)
		if ctx.Err() != nil { // what is cut because nobody wants it any more is no trouble
			return ctx.Err()
		}
		if err == nil || !fault.IsTrouble(err) && fault.Refused(err, fault.LimitExceeded) == nil {
			return err
		}
		if far := t.HowFar(); far > mark {
			mark, tries, since = far, 0, time.Now()
		}
		wait := t.wait(err, tries)
		if most := t.Patience.GiveUpAfter; most > 0 && time.Since(since)+wait > most {
			return err
		}
		t.Log.Warn("trying again", "doing", t.Doing, "because", err.Error(), "seconds", wait.Seconds())
		if !sleep(ctx, wait) {
			return ctx.Err()
		}
		tries++
	}
}

// wait is how long to wait before the next try. Whoever was cut off together should not come back together.
func (t Try) wait(err error, tries int) time.Duration {
	if refusal := fault.Refused(err, fault.LimitExceeded); refusal != nil {
		return refusal.RetryAfter + jitter(t.Patience.First)
	}
	span := t.Patience.Longest
	if tries < 16 { // else the shift might overflow
		span = min(t.Patience.First<<tries, span)
	}
	return span/2 + jitter(span/2)
}

func jitter(most time.Duration) time.Duration {
	if most <= 0 {
		return 0
	}
	return rand.N(most)
}

func sleep(ctx context.Context, span time.Duration) bool {
	timer := time.NewTimer(span)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
