package work

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"fedstream/client/internal/fault"
	bounds "fedstream/client/internal/limits"
	"fedstream/client/internal/task"
	"fedstream/client/internal/transfer"
)

// Failed trainings in a row after which a person should have a look.
const mostFailures = 3

// A Bench has the one offer that a client works on at a time, and decides about it. It outlives the negotiation's streams.
// It is safe for use by several goroutines.
type Bench struct {
	shop   *Shop
	limits Limits

	terms atomic.Pointer[transfer.Terms] // apart: a job asks for them while it is waited for to stop

	mu           sync.Mutex
	job          *Job // guarded by mu, like all below
	reply        Reply
	agreed       uint32 // epochs, at most, that may be trained for the offer
	experience   Experience
	askedForTime bool
	counted      *Job
	failures     int
}

// NewBench makes one.
func NewBench(shop *Shop, limits Limits) *Bench {
	made := &Bench{shop: shop, limits: limits}
	made.Welcome(transfer.Terms{MaxChunkBytes: bounds.DefaultChunkBytes, WindowBytes: bounds.WindowBytes})
	return made
}

// Welcome takes the terms of a new session.
func (b *Bench) Welcome(terms transfer.Terms) { b.terms.Store(&terms) }

// Terms are those of the latest session.
func (b *Bench) Terms() transfer.Terms { return *b.terms.Load() }

// Job is the work on the offer of that id; nil if another one, or none, is worked on.
func (b *Bench) Job(offerID string) *Job {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.job == nil || b.job.Offer.ID != offerID {
		return nil
	}
	return b.job
}

// Experience is what earlier rounds took.
func (b *Bench) Experience() Experience {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.learn()
	return b.experience
}

// learn takes over what the latest job has measured; mu is held.
func (b *Bench) learn() {
	if b.job == nil {
		return
	}
	b.job.mu.Lock()
	defer b.job.mu.Unlock()
	if b.job.epoch > 0 {
		b.experience.Epoch = b.job.epoch
	}
	if b.job.transfer > 0 {
		b.experience.Transfer, b.experience.Misfits = b.job.transfer, 0
	}
}

// Consider says what to answer to an offer. One that is worked on, or trained for, is accepted as it stands: a cut made it
// come again. One that was dropped comes again when a server was asked too early after its restart, and one that was
// delivered when the server has lost the update: it is taken up anew, and sent from disk.
func (b *Bench) Consider(offer Offer) Reply {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.learn()
	if job := b.job; job != nil {
		state, reason := job.State()
		if job.Offer.ID == offer.ID && state == Working {
			return Reply{}
		}
		if job.Offer.ID == offer.ID && state == Failed {
			return Reply{Decline: reason}
		}
		if job.Offer.ID == offer.ID && state == Offered {
			return b.reply
		}
		job.drop("another offer came")
	}
	b.job = newJob(offer, b.shop, b.Terms)
	b.job.mostTraining = b.limits.MaxTraining
	b.agreed = offer.Epochs
	if b.reply = (Reply{}); b.job.isTrained() {
		return b.reply
	}
	b.reply = answer(offer.Epochs, offer.Remaining, b.limits, b.experience)
	b.agreed = b.reply.agreedEpochs(offer.Epochs)
	if b.reply.Misfit {
		b.experience.Misfits++
	}
	b.askedForTime = b.reply.Counter != nil && b.reply.Counter.Time > 0
	return b.reply
}

// Confirm begins, or goes on with, what was agreed. More is refused: what a site allows holds whatever the server says.
func (b *Bench) Confirm(offerID string, plan task.Plan) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.job == nil || b.job.Offer.ID != offerID {
		return
	}
	if plan.Epochs > b.agreed {
		b.job.refuse(fmt.Sprintf("%d epochs were confirmed, and %d agreed on", plan.Epochs, b.agreed))
		return
	}
	if most := b.limits.MaxEpochs; most > 0 { // what is trained already was by an earlier agreement
		plan.Epochs = min(plan.Epochs, most)
	}
	b.job.start(plan)
}

// Withdraw says that the server takes an offer back.
func (b *Bench) Withdraw(offerID, reason string) {
	b.mu.Lock()
	if b.job != nil && b.job.Offer.ID == offerID && b.askedForTime {
		b.experience.MoreTimeRefused = true
	}
	b.mu.Unlock()
	b.Cancel(offerID, reason)
}

// Cancel says that the server does not want the update any more.
func (b *Bench) Cancel(offerID, reason string) {
	job := b.Job(offerID)
	if job == nil {
		return
	}
	if state, _ := job.State(); state == Offered || state == Working {
		b.shop.Log.Info("the server does not want this round's update", "because", reason)
		job.drop(reason)
	}
}

// CheckHealth gives a Stop when training has failed several times in a row, or the server does not let this site in.
func (b *Bench) CheckHealth() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.job == nil || b.job == b.counted {
		return nil
	}
	b.job.mu.Lock()
	defer b.job.mu.Unlock()
	if b.job.state != Delivered && b.job.state != Failed {
		return nil
	}
	b.counted = b.job
	if refusal := fault.Refused(b.job.failure, fault.Unauthenticated, fault.PermissionDenied); refusal != nil {
		return fault.NotLetIn(refusal)
	}
	if training := (*trainingFailure)(nil); !errors.As(b.job.failure, &training) {
		b.failures = 0
		return nil
	}
	if b.failures++; b.failures < mostFailures {
		return nil
	}
	return fault.Stopf(fault.TrainingFailed, "local training failed %d times in a row; the log says why", mostFailures)
}

// Close drops what is being done, and waits until it is.
func (b *Bench) Close(reason string) {
	b.mu.Lock()
	job := b.job
	b.mu.Unlock()
	if job != nil {
		job.drop(reason)
	}
}
