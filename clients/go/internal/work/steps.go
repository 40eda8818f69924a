package work

import (
	"context"
	"errors"
	"maps"
	"time"

	"fedstream/client/internal/backoff"
	"fedstream/client/internal/durable"
	"fedstream/client/internal/logs"
	"fedstream/client/internal/model"
	"fedstream/client/internal/packing"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/store"
	"fedstream/client/internal/task"
	"fedstream/client/internal/transfer"
)

// What is told where the disk takes nothing more.
const trainedWaits = "what was trained waits for the disk"

// The steps of a job: the base model is fetched, a fine-tune made of it and kept, and that uploaded.

func (j *Job) work(ctx context.Context, plan task.Plan) (string, error) {
	if err := j.settleEarlierUpdates(ctx); err != nil {
		return "", err
	}
	began := time.Now()
	base, err := j.fetchBase(ctx)
	if err != nil {
		return "", err
	}
	fetched := time.Now()
	update := j.kept()
	wasTrained := update != nil
	if wasTrained {
		j.shop.Log.Info("this round is trained already; sending what was kept", "round", j.Offer.Round)
	} else if update, err = j.train(ctx, base, plan); err != nil {
		return "", err
	}
	trained := time.Now()
	quarantined, err := j.upload(ctx, base, update, wasTrained)
	if err == nil && quarantined == "" {
		err = packing.Delivered(j.shop.Store, update, j.shop.Federation)
	}
	if err == nil { // what an upload took that was cut short says nothing
		j.mu.Lock()
		j.transfer = fetched.Sub(began) + time.Since(trained)
		j.mu.Unlock()
	}
	return quarantined, err
}

// settleEarlierUpdates asks of updates that were sent and not heard of again, as by a client that was killed just then.
// What an encoding left out before is in one that the server has: it would be added twice.
func (j *Job) settleEarlierUpdates(ctx context.Context) error {
	earlier, err := j.shop.Store.Unsettled()
	if err != nil {
		return err
	}
	for _, update := range earlier {
		if update.OfferID == j.Offer.ID { // which is about to be sent again
			continue
		}
		isAdmitted, err := transfer.IsAdmitted(ctx, j.shop.Connection, update.UploadID, backoff.Usual, j.shop.Log)
		if err == nil && isAdmitted {
			err = packing.Delivered(j.shop.Store, update, j.shop.Federation)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (j *Job) fetchBase(ctx context.Context) ([]model.Entry, error) {
	download := transfer.Download{
		Connection: j.shop.Connection,
		Store:      j.shop.Store,
		Schema:     j.shop.Training.Schema(),
		Patience:   backoff.Usual,
		Log:        j.shop.Log,
		ChunkBytes: func() int { return j.terms().MaxChunkBytes },
		OnBytes:    func(done, total uint64) { j.showBytes(pb.Phase_PHASE_DOWNLOADING, done, total) },
	}
	base, err := download.Fetch(ctx, j.Offer.Base)
	if err != nil {
		return nil, err
	}
	return base, j.shop.Store.KeepOnly(j.Offer.ID, base)
}

func (j *Job) train(ctx context.Context, base []model.Entry, plan task.Plan) (*store.Update, error) {
	j.shop.Log.Info("training", "round", j.Offer.Round, "epochs", plan.Epochs)
	weights := map[string][]byte{}
	for _, entry := range base {
		values, err := j.shop.Store.Read(entry.SHA256)
		if err != nil {
			return nil, err
		}
		weights[entry.Name] = values
	}
	j.show(Progress{Phase: pb.Phase_PHASE_TRAINING, Progress: task.Progress{Epochs: plan.Epochs}})
	began := time.Now()
	limited, cancel := j.withinLimit(ctx)
	defer cancel()
	tuned, err := j.shop.Training.FineTune(limited, weights, plan, func(progress task.Progress) {
		j.show(Progress{pb.Phase_PHASE_TRAINING, progress})
		// Also a fine-tune that is stopped teaches how long an epoch takes.
		if done := float64(progress.Fraction) * float64(progress.Epochs); done >= 1 {
			j.measured(time.Duration(float64(time.Since(began)) / done))
		}
	})
	if err != nil && errors.Is(context.Cause(limited), errTooLong) {
		err = errTooLong
	}
	if err != nil {
		return nil, &trainingFailure{err}
	}
	span := time.Since(began)
	j.measured(span / time.Duration(max(tuned.Epochs, 1)))
	return j.keep(ctx, tuned, span)
}

var errTooLong = errors.New("the site's limit on training time was reached")

// withinLimit gives what a fine-tune may take: how long its epochs take is known only once some have run.
func (j *Job) withinLimit(ctx context.Context) (context.Context, context.CancelFunc) {
	if j.mostTraining <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, j.mostTraining, errTooLong)
}

// trainingFailure says that the fine-tune itself failed, for a reason that may be there the next time too. Not so where a
// transfer failed, or the disk is full: the next round may find that mended.
type trainingFailure struct{ error }

func (f *trainingFailure) Unwrap() error { return f.error }

func (j *Job) measured(epoch time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.epoch = max(epoch, 1)
}

// keep makes the fine-tune count: nothing trains it again, whatever is killed from here on.
func (j *Job) keep(ctx context.Context, tuned task.Tuned, span time.Duration) (*store.Update, error) {
	update := &store.Update{
		OfferID: j.Offer.ID, UploadID: j.Offer.UploadID, Base: j.Offer.Base, NumExamples: tuned.NumExamples,
		Metrics: task.Metrics{}, Epochs: tuned.Epochs, Training: span,
	}
	for name, value := range tuned.Metrics {
		update.Metrics[name] = task.Finite(value)
	}
	for _, spec := range j.shop.Training.Schema() {
		entry := model.EntryOf(spec, tuned.Weights[spec.Name])
		if size, _ := model.SizeOf(spec.DType, spec.Shape); size != entry.Size {
			return nil, errors.New("training gave a tensor of another size than its schema has: " + spec.Name)
		}
		update.Entries = append(update.Entries, entry)
	}
	err := durable.WhenTheDiskCan(ctx, j.shop.Log, trainedWaits, func() error {
		for _, entry := range update.Entries {
			if _, err := j.shop.Store.Put(tuned.Weights[entry.Name]); err != nil {
				return err
			}
		}
		return j.shop.Store.Record(update)
	})
	if err != nil {
		return nil, err
	}
	facts := []any{"round", j.Offer.Round, "epochs", tuned.Epochs, "model", model.DigestOf(update.Entries).SHA256.String()}
	j.shop.Log.Info("trained", append(facts, logs.Metrics(update.Metrics)...)...)
	return update, nil
}

func (j *Job) upload(ctx context.Context, base []model.Entry, update *store.Update, wasTrained bool) (string, error) {
	upload := transfer.Upload{
		Connection: j.shop.Connection,
		Store:      j.shop.Store,
		Patience:   backoff.Usual,
		Log:        j.shop.Log,
		UploadID:   j.Offer.UploadID,
		Update:     update,
		Terms:      j.terms,
		Pack: func(encodings []pb.Encoding) (*store.Packed, error) {
			var packed *store.Packed
			err := durable.WhenTheDiskCan(ctx, j.shop.Log, trainedWaits, func() (err error) {
				packed, err = packing.Pack(j.shop.Store, update, base, encodings, j.shop.Federation)
				return err
			})
			return packed, err
		},
		Repair:  func() error { return j.repair(update) },
		OnBytes: func(done, total uint64) { j.showBytes(pb.Phase_PHASE_UPLOADING, done, total) },
		WasSent: wasTrained,
	}
	j.show(Progress{Phase: pb.Phase_PHASE_UPLOADING})
	return upload.Run(ctx)
}

// repair looks at what is kept of the update, byte for byte: what was packed is packed again if it is damaged.
func (j *Job) repair(update *store.Update) error {
	for _, entry := range update.Entries {
		if !j.shop.Store.Verify(entry.SHA256) {
			return errors.New("the trained tensor " + entry.Name + " was damaged on this disk")
		}
	}
	if update.Packed == nil {
		return nil
	}
	for _, parcel := range update.Packed.Tensors {
		if !j.shop.Store.Verify(parcel.Blob) {
			update.Packed = nil
			return nil
		}
	}
	return nil
}

func (j *Job) show(progress Progress) {
	progress.Metrics = maps.Clone(progress.Metrics) // they are told from another goroutine, and training goes on with its own
	j.mu.Lock()
	defer j.mu.Unlock()
	j.progress = progress
	j.changes++
}

func (j *Job) showBytes(phase pb.Phase, done, total uint64) {
	fraction := float32(1)
	if total > 0 {
		fraction = float32(done) / float32(total)
	}
	j.show(Progress{phase, task.Progress{Fraction: fraction}})
}
