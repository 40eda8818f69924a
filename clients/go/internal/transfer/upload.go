package transfer

import (
	"context"
	"errors"
	"log/slog"

	"fedstream/client/internal/backoff"
	"fedstream/client/internal/fault"
	"fedstream/client/internal/link"
	"fedstream/client/internal/model"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/store"
	"fedstream/client/internal/wire"
)

// How often an upload may begin anew, or be taken over by another stream, before something is wrong for good.
const mostRestarts = 3

// Unwanted says that the server does not wait for this update (any more).
type Unwanted struct{ Reason string }

func (u *Unwanted) Error() string { return u.Reason }

// Terms are how updates are sent, as the latest welcome says. Encodings are those that both ends take, best first.
type Terms struct {
	MaxChunkBytes int
	WindowBytes   int
	Encodings     []pb.Encoding
}

// IsAdmitted asks whether the server has an update in its round; not so where it does not know it.
func IsAdmitted(
	ctx context.Context, connection *link.Connection, uploadID string, patience backoff.Patience, log *slog.Logger,
) (isAdmitted bool, err error) {
	try := backoff.Try{
		Doing: "asking of an earlier update", HowFar: func() int64 { return 0 }, Patience: patience, Log: log,
	}
	err = try.Until(ctx, func(ctx context.Context) error {
		status, err := connection.UploadStatus(ctx, uploadID)
		isAdmitted = status.GetState() == pb.UploadState_UPLOAD_STATE_ADMITTED
		return err
	})
	if fault.Refused(err) != nil {
		return false, nil
	}
	return isAdmitted, err
}

// An Upload sends an update: manifest, the tensors that the server lacks, finish; resumed at `committed_size` after any cut.
//
//	MANIFEST --missing tensors--> BODY --all sent--> FINISH --ack--> delivered
//	BODY, FINISH --cut--> STATUS --> MANIFEST (the server has none) | BODY | FINISH | unwanted
//
// What is sent but not yet committed never exceeds the window, so that no cut costs more than that.
type Upload struct {
	Connection *link.Connection
	Store      *store.Store
	Patience   backoff.Patience
	Log        *slog.Logger
	UploadID   string
	Update     *store.Update
	Terms      func() Terms
	Pack       func(encodings []pb.Encoding) (*store.Packed, error) // for the manifest; the same each time
	Repair     func() error                                         // sees to it that what is kept of the update is sound
	OnBytes    func(done, total uint64)
	WasSent    bool // by an earlier process, perhaps to its end

	body      *body // what travels, once the server has said so
	granted   int   // the window of this upload; 0 where the server has not said any
	committed uint64
	highest   uint64
	restarts  int
	halvings  int // of chunks that the server has refused as too large
	began     uint64
	cut       *cutStream
}

// A cutStream of chunks of so many bytes was cut; it had begun where the body was committed up to `began`.
type cutStream struct {
	chunkBytes int
	began      uint64
}

// Run sends until the server has the update durably, and says why it was kept aside; nothing if it is in the round.
func (u *Upload) Run(ctx context.Context) (quarantined string, err error) {
	try := backoff.Try{
		Doing: "sending the update", HowFar: func() int64 { return int64(u.highest) }, Patience: u.Patience, Log: u.Log,
	}
	err = try.Until(ctx, func(ctx context.Context) error {
		quarantined, err = u.once(ctx)
		return u.judge(err)
	})
	if refusal := fault.Refused(err, fault.RoundClosed, fault.UnknownUpload); refusal != nil {
		return "", &Unwanted{refusal.Message}
	}
	return quarantined, err
}

func (u *Upload) once(ctx context.Context) (string, error) {
	canGoOn := false
	if u.body != nil || u.WasSent {
		var err error
		if canGoOn, err = u.askStatus(ctx); err != nil {
			return "", err
		}
	}
	if !canGoOn {
		if err := u.putManifest(ctx); err != nil {
			return "", err
		}
	}
	if u.body != nil && u.committed < u.body.size {
		if err := u.writeBody(ctx); err != nil {
			return "", u.afterBody(err)
		}
	}
	return u.finish(ctx)
}

// afterBody gives what the end of a stream of chunks means, and learns from it. That chunks are too large is mended by
// smaller ones, while there are any.
func (u *Upload) afterBody(err error) error {
	if errors.Is(err, link.ErrStalled) {
		u.Connection.Chunks.NoteStall(u.chunkBytes())
	} else if fault.IsTrouble(err) {
		u.cut = &cutStream{u.chunkBytes(), u.began}
	}
	refusal := fault.Refused(err, fault.ChunkTooLarge)
	if refusal == nil || u.chunkBytes() <= 1 {
		return err
	}
	u.halvings++
	return &fault.Trouble{Message: refusal.Message}
}

// judge says which errors are to be tried again, and from where.
func (u *Upload) judge(err error) error {
	refusal := fault.Refused(err)
	switch {
	case refusal == nil:
	case fault.Refused(err, fault.WrongOffset, fault.ChecksumMismatch, fault.BodyIncomplete) != nil:
		return &fault.Trouble{Message: refusal.Message} // documented as: resume at `committed_size`
	case fault.Refused(err, fault.ManifestRequired, fault.DigestMismatch, fault.Superseded) != nil:
		return u.beginAnew(refusal)
	}
	return err
}

func (u *Upload) beginAnew(refusal *fault.Refusal) error {
	u.restarts++
	if u.restarts > mostRestarts {
		return refusal
	}
	u.Log.Warn("the upload begins anew", "because", refusal.Message)
	if refusal.Reason != fault.Superseded { // then the other stream's bytes are asked for like ours
		u.body, u.WasSent = nil, false
	}
	if refusal.Reason == fault.DigestMismatch {
		if err := u.Repair(); err != nil {
			return err
		}
	}
	return &fault.Trouble{Message: refusal.Message}
}

func (u *Upload) putManifest(ctx context.Context) error {
	packed, err := u.Pack(u.Terms().Encodings)
	if err != nil {
		return err
	}
	var entries []model.Entry
	var tensors []wire.Travelling
	for _, parcel := range packed.Tensors {
		entries = append(entries, parcel.Entry)
		tensors = append(tensors, wire.Travelling{Entry: parcel.Entry, Encoding: parcel.Encoding, EncodedSize: parcel.Size})
	}
	header := &pb.UpdateHeader{
		UploadId:        u.UploadID,
		NumTensors:      uint32(len(entries)),
		ModelDigest:     wire.WriteDigest(model.DigestOf(entries)),
		NumExamples:     u.Update.NumExamples,
		Metrics:         wire.WriteMetrics(u.Update.Metrics),
		Epochs:          u.Update.Epochs,
		TrainingSeconds: u.Update.Training.Seconds(),
	}
	answer, err := u.Connection.PutManifest(ctx, header, wire.ManifestParts(tensors))
	if err != nil {
		return err
	}
	missing, err := wire.ReadIndexes(answer.GetMissingTensors(), len(tensors))
	if err != nil { // the server has a defect, which another try would not mend
		return err
	}
	u.body = newBody(u.Store, packed.Tensors, missing)
	if answer.GetBodySizeBytes() != u.body.size {
		u.body = nil
		return fault.Malformedf(fault.InvalidRequest, "the server counts the body otherwise")
	}
	u.granted = int(answer.GetWindowBytes())
	u.commit(answer.GetCommittedSize())
	u.Log.Info("sending the update", "bytes", u.body.size, "committed", u.committed, "tensors", len(missing))
	return nil
}

// askStatus asks how far the server is, and says whether it goes on from there without the manifest.
func (u *Upload) askStatus(ctx context.Context) (bool, error) {
	status, err := u.Connection.UploadStatus(ctx, u.UploadID)
	if err != nil {
		return false, err
	}
	switch status.GetState() {
	case pb.UploadState_UPLOAD_STATE_CLOSED:
		return false, &Unwanted{"the round closed before the update was there"}
	case pb.UploadState_UPLOAD_STATE_ADMITTED, pb.UploadState_UPLOAD_STATE_QUARANTINED:
		u.body, u.WasSent = nil, true // nothing is to be sent; finishing again gives the same answer
		return true, nil
	case pb.UploadState_UPLOAD_STATE_OPEN:
		if u.body != nil && status.GetBodySizeBytes() == u.body.size {
			u.granted = int(status.GetWindowBytes())
			u.commit(status.GetCommittedSize())
			u.learnOfCut()
			u.Log.Info("resuming the upload", "committed", u.committed, "of", u.body.size)
			return true, nil
		}
	}
	return false, nil
}

// learnOfCut takes note of a stream of which nothing got through, now that the server has said so: one that is away says
// nothing of the line.
func (u *Upload) learnOfCut() {
	if u.cut != nil && u.committed <= u.cut.began {
		u.Connection.Chunks.NoteCut(u.cut.chunkBytes)
	}
	u.cut = nil
}

func (u *Upload) commit(committed uint64) {
	u.committed = min(committed, u.body.size)
	u.highest = max(u.highest, u.committed)
	u.OnBytes(u.committed, u.body.size)
}

// chunkBytes is at most half the window, so that whoever waits for an answer has sent enough to get one.
func (u *Upload) chunkBytes() int {
	agreed := max(1, min(u.Terms().MaxChunkBytes, u.windowBytes()/2, u.Connection.Chunks.Most()))
	if u.halvings == 0 {
		return agreed
	}
	return max(1, agreed>>min(u.halvings, 30))
}

func (u *Upload) windowBytes() int {
	if u.granted > 0 {
		return u.granted
	}
	return u.Terms().WindowBytes
}

func (u *Upload) finish(ctx context.Context) (string, error) {
	answer, err := u.Connection.FinishUpload(ctx, u.UploadID)
	if err != nil {
		return "", err
	}
	if answer.GetState() == pb.UploadState_UPLOAD_STATE_ADMITTED {
		return "", nil
	}
	if answer.GetReason() == "" {
		return "no reason given", nil
	}
	return answer.GetReason(), nil
}
