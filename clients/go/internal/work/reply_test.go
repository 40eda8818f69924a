package work

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestOffersAreAnsweredByLimitsAndExperience(t *testing.T) {
	const second = time.Second
	known := func(epoch, transfer time.Duration) Experience { return Experience{Epoch: epoch, Transfer: transfer} }
	for what, one := range map[string]struct {
		limits Limits
		known  Experience
		wanted Counter // all zero for an acceptance
	}{
		"without limits is accepted":      {},
		"of more epochs is countered":     {limits: Limits{MaxEpochs: 3}, wanted: Counter{Epochs: 3}},
		"that fits the time is accepted":  {known: known(8*second, 0)},
		"that takes longer asks for time": {known: known(10*second, 5*second), wanted: Counter{Time: 125 * second}},
		"is cut to the time after a no":   {known: Experience{Epoch: 10 * second, MoreTimeRefused: true}, wanted: Counter{Epochs: 8}},
		"is cut to what the site allows":  {limits: Limits{MaxTraining: 21 * second}, known: known(5*second, 0), wanted: Counter{Epochs: 4}},
		"has a time that any span can be": {known: known(math.MaxInt64/4, 0), wanted: Counter{Time: longest}},
	} {
		reply := answer(10, 100*second, one.limits, one.known)
		got := Counter{}
		if reply.Counter != nil {
			got = Counter{Epochs: reply.Counter.Epochs, Time: reply.Counter.Time}
		}
		if reply.Decline != "" || got != one.wanted {
			t.Errorf("an offer that %s: %+v %+v", what, reply, got)
		}
	}
}

func TestOfferOfWhichNotOneEpochFitsIsDeclined(t *testing.T) {
	for _, reply := range []Reply{
		answer(10, 100*time.Second, Limits{MaxTraining: time.Second}, Experience{Epoch: 5 * time.Second}),
		answer(10, 100*time.Second, Limits{}, Experience{Epoch: 500 * time.Second, MoreTimeRefused: true}),
		answer(10, time.Second, Limits{}, Experience{Epoch: time.Second, Transfer: time.Minute, MoreTimeRefused: true}),
	} {
		if reply.Decline == "" {
			t.Errorf("%+v", reply)
		}
	}
}

func TestOneEpochIsTriedFromTimeToTimeWhereItOnceTookTooLong(t *testing.T) {
	for what, ask := range map[string]func(misfits uint) Reply{
		"the site allows": func(misfits uint) Reply {
			return answer(10, 100*time.Second, Limits{MaxTraining: time.Second}, Experience{Epoch: 5 * time.Second, Misfits: misfits})
		},
		"remains": func(misfits uint) Reply {
			known := Experience{Epoch: 500 * time.Second, MoreTimeRefused: true, Misfits: misfits}
			return answer(10, 100*time.Second, Limits{}, known)
		},
	} {
		var tried []uint
		for misfits := uint(0); misfits < 9; misfits++ {
			reply := ask(misfits)
			if !reply.Misfit {
				t.Errorf("longer than %s, %d misfits: %+v", what, misfits, reply)
			}
			if reply.Counter != nil && reply.Counter.Epochs == 1 && reply.Counter.Time == 0 {
				tried = append(tried, misfits)
			}
		}
		if !slices.Equal(tried, []uint{1, 3, 7}) {
			t.Errorf("longer than %s: tried with %v misfits", what, tried)
		}
	}
}
