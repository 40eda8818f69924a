// Package work is the work on offers: what to answer to one, and downloading, training and uploading for it.
package work

import (
	"fmt"
	"strings"
	"time"
)

// Epochs vary with what else a machine does; asking for a fifth more than was measured costs the round little.
const safety = 1.2

// As much time as anybody could ask for.
const longest = 10 * 365 * 24 * time.Hour

// Limits are what a site allows in one round; 0 is no limit.
type Limits struct {
	MaxEpochs   uint32
	MaxTraining time.Duration
}

// Experience is what earlier rounds took here. Epoch is 0 before the first; Transfer is download and upload together.
// Misfits counts the offers in a row, since the last delivery, for which one epoch seemed to take too long.
type Experience struct {
	Epoch           time.Duration
	Transfer        time.Duration
	MoreTimeRefused bool
	Misfits         uint
}

// isWorthATry says whether to doubt the measures: who always declines never measures again, and they may be of one bad
// day. With the second misfit, the fourth, the eighth and so on; the limit on time ends the epoch, if need be.
func (e Experience) isWorthATry() bool { return e.Misfits > 0 && e.Misfits&(e.Misfits+1) == 0 }

// A Reply to an offer declines it, or counters it, or, with neither, accepts it. Misfit says that its time, or what the
// site allows, seems too short for one epoch, which may be tried all the same.
type Reply struct {
	Decline string
	Counter *Counter
	Misfit  bool
}

// A Counter asks for fewer epochs, 0 to leave them, or more time from now on, 0 to leave it.
type Counter struct {
	Epochs uint32
	Time   time.Duration
	Reason string
}

// agreedEpochs says how many may be trained for an offer of so many that was answered so.
func (r Reply) agreedEpochs(planned uint32) uint32 {
	switch {
	case r.Decline != "":
		return 0
	case r.Counter != nil && r.Counter.Epochs > 0:
		return min(planned, r.Counter.Epochs)
	}
	return planned
}

// answer accepts, or counters with the fewest changes that make the offer fit, or declines if nothing can.
func answer(planned uint32, remaining time.Duration, limits Limits, known Experience) Reply {
	var reasons []string
	epochs := planned
	lower := func(most int64, reason string) {
		if most < int64(epochs) {
			epochs = uint32(max(most, 0))
			reasons = append(reasons, reason)
		}
	}
	counter := func(time time.Duration) Reply {
		switch {
		case epochs < 1 && known.isWorthATry():
			reason := "one epoch is tried, though it seems not to fit: " + strings.Join(reasons, "; ")
			return Reply{Counter: &Counter{1, 0, reason}, Misfit: true}
		case epochs < 1:
			return Reply{Decline: "not even one epoch fits: " + strings.Join(reasons, "; "), Misfit: true}
		case epochs == planned && time == 0:
			return Reply{}
		case epochs == planned:
			return Reply{Counter: &Counter{0, time, strings.Join(reasons, "; ")}}
		}
		return Reply{Counter: &Counter{epochs, time, strings.Join(reasons, "; ")}}
	}
	if limits.MaxEpochs > 0 {
		lower(int64(limits.MaxEpochs), fmt.Sprintf("this site allows at most %d epochs a round", limits.MaxEpochs))
	}
	if known.Epoch <= 0 {
		return counter(0)
	}
	if limits.MaxTraining > 0 {
		lower(int64(limits.MaxTraining/known.Epoch), fmt.Sprintf("this site allows %v of training a round", limits.MaxTraining))
	}
	perEpoch := time.Duration(float64(known.Epoch) * safety)
	needed := longest // thousands of millions of epochs would overflow
	if most := longest / max(perEpoch, 1); int64(epochs) < int64(most) {
		needed = time.Duration(epochs)*perEpoch + known.Transfer
	}
	if epochs < 1 || needed <= remaining {
		return counter(0)
	}
	if !known.MoreTimeRefused {
		reasons = append(reasons, fmt.Sprintf("%d epochs take about %v here", epochs, needed.Round(time.Second)))
		return counter(needed)
	}
	// The server would not wait longer the last time: fewer epochs in time are worth more than another withdrawal.
	lower(int64((remaining-known.Transfer)/max(perEpoch, 1)), "so many fit the time that remains")
	return counter(0)
}
