package identity

import (
	"context"
	"crypto/x509"
	"log/slog"
	"time"

	"fedstream/client/internal/link"
)

const (
	// A third of 90 days is 30 days, so a look each hour leaves hundreds of tries to a server that is away.
	longestLook = time.Hour
	// Part of a shorter validity between two looks: four fall into its last third.
	lookShare = 12
	// A renewal makes the connection anew, which cuts what it carries: not all the time, however short the validity.
	leastLook = time.Minute
)

// isDue says whether less than a third of the validity is left.
func isDue(certificate *x509.Certificate, now time.Time) bool {
	return certificate.NotAfter.Sub(now) < certificate.NotAfter.Sub(certificate.NotBefore)/3
}

// RenewIfDue gets the next certificate if it is time, and says whether there is one. After a failure the next look tries
// again.
func (f Folder) RenewIfDue(ctx context.Context, connection *link.Connection, log *slog.Logger) bool {
	pair, err := f.Files().Read()
	if err != nil || !isDue(pair.Certificate.Leaf, time.Now()) {
		return false // what is wrong with the files is said where they are needed
	}
	next, err := f.renew(ctx, connection, pair)
	if err != nil {
		log.Warn("the certificate could not be renewed", "because", err.Error(), "expires", pair.Certificate.Leaf.NotAfter)
		return false
	}
	log.Info("certificate renewed", "expires", next.NotAfter)
	return !next.Equal(pair.Certificate.Leaf)
}

func (f Folder) renew(ctx context.Context, connection *link.Connection, pair *link.Pair) (*x509.Certificate, error) {
	answer, err := connection.RenewCertificate(ctx)
	if err != nil {
		return nil, err
	}
	own := pair.Certificate.Leaf
	next, err := readOwn(answer.GetCertificate(), own.Subject.CommonName, own.PublicKey, pair.Authority)
	if err != nil {
		return nil, err
	}
	return next, f.KeepCertificate(next)
}

// KeepRenewed looks again and again until ctx ends, and calls renewed when there is a new certificate.
func (f Folder) KeepRenewed(ctx context.Context, connection *link.Connection, log *slog.Logger, renewed func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(f.untilNextLook()):
			if f.RenewIfDue(ctx, connection, log) {
				renewed()
			}
		}
	}
}

// untilNextLook is as long as the certificate leaves. Where it cannot be read, the next look says so, and soon.
func (f Folder) untilNextLook() time.Duration {
	pair, err := f.Files().Read()
	if err != nil {
		return leastLook
	}
	own := pair.Certificate.Leaf
	return max(leastLook, min(longestLook, own.NotAfter.Sub(own.NotBefore)/lookShare))
}
