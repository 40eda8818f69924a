package work

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"fedstream/client/internal/fault"
	"fedstream/client/internal/link"
	"fedstream/client/internal/model"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/store"
	"fedstream/client/internal/task"
	"fedstream/client/internal/transfer"
)

// A Shop is what jobs work with.
type Shop struct {
	Connection *link.Connection
	Store      *store.Store
	Training   task.Training
	Federation string // its name
	Log        *slog.Logger
}

// A State of a job.
//
//	Offered --confirm--> Working --acknowledged--> Delivered
//	Offered, Working --cancel, withdraw, another offer, unwanted--> Dropped
//	Working --cannot be done--> Failed
type State int

// The states of a job.
const (
	Offered State = iota
	Working
	Delivered
	Dropped
	Failed
)

// An Offer is what a job is for.
type Offer struct {
	ID        string
	UploadID  string
	Round     uint32
	Base      model.SHA256
	Epochs    uint32
	Remaining time.Duration
}

// Progress says how far a job is.
type Progress struct {
	Phase pb.Phase
	task.Progress
}

// A Job is the work on one offer, from the base model to the acknowledged update. It outlives the streams it is agreed on.
type Job struct {
	Offer Offer
	shop  *Shop
	terms func() transfer.Terms
	done  chan struct{} // closed when nothing runs any more

	mostTraining time.Duration // that the site allows; 0 for no limit

	mu       sync.Mutex
	cancel   context.CancelFunc // guarded by mu, like all below
	state    State
	reason   string
	failure  error // what it failed with
	progress Progress
	changes  int
	epoch    time.Duration // as measured
	transfer time.Duration
}

func newJob(offer Offer, shop *Shop, terms func() transfer.Terms) *Job {
	return &Job{Offer: offer, shop: shop, terms: terms, cancel: func() {}, done: make(chan struct{})}
}

// State tells where the job is, and why it ended so.
func (j *Job) State() (State, string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.state, j.reason
}

// Progress tells how far it is; the number grows with every change.
func (j *Job) Progress() (Progress, int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.progress, j.changes
}

// isTrained says whether the fine-tune is done and on disk, by this process or an earlier one.
func (j *Job) isTrained() bool { return j.kept() != nil }

func (j *Job) kept() *store.Update { return j.shop.Store.Update(j.Offer.ID, j.Offer.Base) }

// start begins, once the server has confirmed. Nothing happens if it has begun already.
func (j *Job) start(plan task.Plan) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.state != Offered {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	j.state, j.cancel = Working, cancel
	j.progress = Progress{Phase: pb.Phase_PHASE_DOWNLOADING}
	go j.run(ctx, plan)
}

// refuse ends it before it has begun. Nothing happens if it has.
func (j *Job) refuse(reason string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.state == Offered {
		j.shop.Log.Error("the server goes by other terms than were agreed on", "because", reason)
		j.state, j.reason = Failed, reason
	}
}

// drop stops it: the server does not want it any more. A job that has ended stays as it is. It returns when nothing runs
// any more: two fine-tunes at a time would take each other's time and files.
func (j *Job) drop(reason string) {
	j.mu.Lock()
	isRunning := j.state == Working
	if j.state == Offered || j.state == Working {
		j.state, j.reason = Dropped, reason
	}
	j.cancel()
	j.mu.Unlock()
	if isRunning {
		<-j.done
	}
}

func (j *Job) end(state State, reason string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.state == Working {
		j.state, j.reason = state, reason
	}
}

func (j *Job) run(ctx context.Context, plan task.Plan) {
	defer close(j.done)
	quarantined, err := j.work(ctx, plan)
	log := j.shop.Log.With("round", j.Offer.Round)
	var unwanted *transfer.Unwanted
	switch {
	case ctx.Err() != nil: // dropped meanwhile
	case err == nil && quarantined == "":
		log.Info("update delivered")
		j.end(Delivered, "")
	case err == nil:
		log.Warn("update delivered", "kept_aside_because", quarantined)
		j.end(Delivered, "")
	case errors.As(err, &unwanted):
		log.Info("the update is not wanted any more", "because", err.Error())
		j.end(Dropped, unwanted.Reason)
	default:
		log.Error("the work on this round failed", "because", err.Error())
		j.mu.Lock()
		j.failure = err
		j.mu.Unlock()
		j.end(Failed, generalWords(err))
	}
}

// generalWords is a reason that may leave this site: no file names, no paths.
func generalWords(err error) string {
	if fault.Refused(err, fault.UnknownModel) != nil {
		return "the base model is not published any more"
	}
	if errors.Is(err, errTooLong) {
		return errTooLong.Error()
	}
	if refusal := fault.Refused(err); refusal != nil {
		return "the server refused a call: " + refusal.Reason
	}
	return "the work failed at the site"
}
